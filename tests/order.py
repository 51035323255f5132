"""Which files of tests start first: those that take longest, so that none begins when a core has nothing else to do."""

from pathlib import Path

# more than half a minute of one core, the longest first
LONGEST = """
examples/test_tradeoff cli/test_documents cli/test_end_to_end dropin/test_generation_choices cli/test_bad_input
cli/test_pipeline dropin/test_commands cli/test_readme dropin/test_distributed dropin/test_resume
dropin/test_training_guards dropin/test_precision dropin/test_export examples/test_run plugin/test_policy_criterion
plugin/test_policy_step benchmarks/test_generation cli/test_policy_fit
""".split()
PLACES = {str(Path(__file__).resolve().parent / (name + ".py")): number for number, name in enumerate(LONGEST)}


def sort(items):
    """Sorts pytest's tests in place; those of one file, and files that are not named, stay in their order."""
    items.sort(key=lambda item: PLACES.get(str(item.fspath), len(PLACES)))
