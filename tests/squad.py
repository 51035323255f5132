"""Small SQuAD files of real texts, and examples/squad/prepare.py run in this process."""

import importlib.util
import sys
from unittest import mock

from dropin.workers import ROOT

FOLDER = ROOT / "examples" / "squad"


def prepare(*arguments):
    """Runs prepare.py's command line in this process; returns its error line, or None when it ended well."""
    spec = importlib.util.spec_from_file_location("squad_prepare", str(FOLDER / "prepare.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with mock.patch.object(sys, "argv", ["prepare.py", *map(str, arguments)]):
        try:
            module.main()
        except SystemExit as stop:
            return str(stop.code)
    return None


def make_squad(rows, prefix):
    """SQuAD 2.0 of real texts: asks for a word of the text; every fourth question has no answer."""
    paragraphs = []
    for number, row in enumerate(rows):
        context = row["document"][: 200 + 20 * number]
        answer = max(context.split()[number % 3 : 9], key=len).strip(".,()")
        start = context.index(answer)
        entry = {"id": f"{prefix}{number}", "question": f"Word {number % 9} é?", "is_impossible": number % 4 == 3}
        entry["answers"] = [] if number % 4 == 3 else [{"text": answer, "answer_start": start}]
        paragraphs.append({"context": context, "qas": [entry]})
    return {"version": "v2.0", "data": [{"title": "Texts", "paragraphs": paragraphs}]}
