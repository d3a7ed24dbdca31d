"""How many situations of real judges, servers and data are right: the cases, their neighbours, the model families.

    python benchmarks/real.py       # about two minutes

A case is a kind of situation that users met, and right if all of its tests pass; each named row of their tables is a
neighbour. Records `real.cases_right`, `real.neighbours_right` and `real.templates_judged`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

from figures import record

ROOT = Path(__file__).resolve().parent.parent
VENDORS, ERRORS = "engines/test_vendor_replies.py", "engines/test_real_errors.py"
DIALECTS, TEMPLATES = "engines/test_dialects.py", "engines/test_templates.py"
TIERS = ("system/", "integration/")  # of the tests that are not in unit/
CASES = {
    "the refusal of a row is that row's": [
        f"{DIALECTS}::test_a_refused_row_fails_alone",
        f"{ERRORS}::test_an_error_about_one_row_is_that_rows",
        "integration/test_vendor.py::test_a_row_that_fails_fails_alone",
        "integration/test_vendor.py::test_each_package_has_its_own_errors",
    ],
    "a server that serves nothing": [
        f"{DIALECTS}::test_a_server_that_serves_nothing_stops_the_run",
        f"{ERRORS}::test_an_error_about_everything_stops_the_run_with_its_own_words",
        "integration/test_vendor.py::test_a_key_that_is_refused_stops_the_run",
    ],
    "a whole reply in any dialect": [
        f"{DIALECTS}::test_a_reply_in_any_dialect_is_read_and_paid_once",
        f"{VENDORS}::test_a_whole_reply_is_read",
        f"{VENDORS}::test_a_vendor_may_keep_the_reasoning_to_itself",
        f"{VENDORS}::test_a_reply_without_a_score_has_its_kind",
        f"{VENDORS}::test_an_interrupted_reply_is_asked_for_again",
        f"{VENDORS}::test_a_log_probability_of_null_is_of_what_cannot_be",
    ],
    "a field under another name": [
        f"{DIALECTS}::test_a_limit_under_another_name",
        f"{ERRORS}::test_the_longest_reply_is_learned_once",
        f"{ERRORS}::test_a_limit_that_is_not_known_costs_no_row",
    ],
    "a field that a server refuses": [
        f"{DIALECTS}::test_an_unknown_field_is_left_out",
        f"{ERRORS}::test_an_error_about_a_field_costs_no_row",
    ],
    "an answer that breaks its server": [
        "engines/test_server.py::test_an_answer_that_breaks_the_server_is_refused",
        "engines/test_server.py::test_nothing_is_gained_by_an_answer_that_breaks_the_server_and_nothing_lost_by_length",
    ],
    "a steady rate limit": [
        f"{DIALECTS}::test_a_steady_rate_limit_loses_no_row",
        f"{VENDORS}::test_a_rate_limit_in_any_form_costs_no_attempt",
        f"{VENDORS}::test_a_refusal_is_no_rate_limit",
        f"{ERRORS}::test_an_error_that_passes_costs_no_row",
    ],
    "the proxy of the environment": [
        f"{DIALECTS}::test_a_judge_behind_the_proxy_of_the_environment",
        f"{DIALECTS}::test_a_judge_on_the_own_machine_goes_past_the_proxy",
    ],
    "images on their way to a server": [f"{DIALECTS}::test_a_photograph_is_sent_about_as_large_as_it_is"],
    "a prompt that the server cut": [
        f"{DIALECTS}::test_a_prompt_that_the_server_cut_is_a_failure",
        f"{DIALECTS}::test_a_server_that_drops_images_gives_no_score",
        f"{VENDORS}::test_tokens_that_a_cache_held_were_read_too",
    ],
    "a helper that fails hides nothing": [f"{DIALECTS}::test_a_reply_that_cannot_be_continued_stays_cut"],
    "templates and the system turn": [f"{TEMPLATES}::test_the_judge_sees_instructions_question_and_answer_in_order"],
    "tags that are special tokens": [f"{TEMPLATES}::test_the_familys_own_reply_is_read"],
    "images without their place": [
        f"{TEMPLATES}::test_every_image_is_shown_once_and_named",
        f"{TEMPLATES}::test_a_template_that_leaves_something_out_cannot_judge",
        f"{TEMPLATES}::test_a_template_may_move_images_and_trim_texts",
        "data/test_cells.py::test_an_image_is_shown_where_a_mark_in_the_text_says",
    ],
    "one bad row of a set": ["offline/test_bad_rows.py"],
    "the forms that trainers document": ["data/test_conversations.py"],
    "a text where an image is": ["data/test_cells.py::test_a_data_uri_may_be_where_a_path_may"],
    "a list of references": ["data/test_cells.py::test_trainers_and_files_read_references_alike"],
    "bytes that are no image": ["data/test_cells.py::test_what_bytes_are_is_read_from_them"],
    "numbers of a container": ["system/test_video.py"],
    "half a character": ["offline/test_output.py::test_half_a_character_reaches_no_trainers_log_and_no_file_as_bytes"],
}


def outcomes(nodes: list[str]) -> dict[str, list[bool]]:
    """Whether each row of each test passed, by the test's file and function."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        files = sorted({f"tests/{node if node.startswith(TIERS) else f'unit/{node}'}" for node in nodes})
        if subprocess.run([*command, *files], cwd=ROOT, stdout=subprocess.DEVNULL).returncode not in (0, 1):
            sys.exit("pytest did not run: a test named in CASES is not there")
        found: dict[str, list[bool]] = defaultdict(list)
        for case in ElementTree.parse(report).iter("testcase"):
            file = case.attrib["classname"].removeprefix("tests.").removeprefix("unit.").replace(".", "/") + ".py"
            if any(child.tag == "skipped" for child in case):
                continue  # a row that one of the jobs can use
            passed = not any(child.tag in ("failure", "error") for child in case)
            for name in (file, f"{file}::{case.attrib['name'].split('[')[0]}"):
                found[name].append(passed)
        return found


def main() -> None:
    """Runs the tests and records the counts."""
    found = outcomes([node for nodes in CASES.values() for node in nodes])
    right, neighbours = [], 0
    for case, nodes in CASES.items():
        rows = [passed for node in nodes for passed in found[node]]
        right.append(bool(rows) and all(rows))
        neighbours += sum(rows)
        print(f"{'right' if right[-1] else 'WRONG'}  {sum(rows):3} of {len(rows):3}  {case}")
    families = found[f"{TEMPLATES}::test_the_familys_own_reply_is_read"]
    record("real.cases_right", sum(right) / len(right), unit="share", target=">= 1", note=f"{len(right)} kinds of case")
    record("real.neighbours_right", neighbours, unit="rows of tables", target=">= 100")
    record("real.templates_judged", sum(families), unit="model families", target=">= 9")


if __name__ == "__main__":
    main()
