"""The fairseq plugin: models, criterion, tasks, scorer; everything that imports fairseq."""

import sys

from sd_fairseq.plugin.guards.compatibility import prepare_environment, quieten_foreign_warnings
from sd_fairseq.plugin.guards.errors import install_one_line_errors
from sd_fairseq.plugin.guards.preflight import check_command_line
from sd_fairseq.plugin.repairs.short_log import install as install_short_log

install_one_line_errors()
prepare_environment()
quieten_foreign_warnings()
install_short_log()
check_command_line(sys.argv)

import sd_fairseq.plugin.criterions.sd_exit_criterion  # noqa: E402, F401
import sd_fairseq.plugin.criterions.sd_policy_criterion  # noqa: E402, F401
import sd_fairseq.plugin.models.switchable_bart  # noqa: E402, F401
import sd_fairseq.plugin.models.switchable_gpt2  # noqa: E402, F401
import sd_fairseq.plugin.models.switchable_llama  # noqa: E402, F401
import sd_fairseq.plugin.models.switchable_t5  # noqa: E402, F401
import sd_fairseq.plugin.scoring  # noqa: E402, F401
import sd_fairseq.plugin.tasks.switchable_sentence_prediction  # noqa: E402, F401
import sd_fairseq.plugin.tasks.switchable_squad  # noqa: E402, F401
import sd_fairseq.plugin.tasks.switchable_translation  # noqa: E402, F401
import sd_fairseq.plugin.text.tokenizer  # noqa: E402, F401
