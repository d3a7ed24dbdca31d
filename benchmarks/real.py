"""How many situations of real judges, servers and data are right: the cases, their neighbours, the model families.

    python benchmarks/real.py       # about four minutes

A case is a kind of situation that users met, and right if all of its tests pass; each named row of their tables is a
neighbour. `ROWS` are what an independent attack on every promise found; those that are numbers are measured by
`hardening.py` and `bounds.py`, too. Records `real.cases_right`, `real.neighbours_right`, `real.templates_judged` and
`hardening.rows_right`.
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
TIERS = ("system/", "integration/", "contract/")  # of the tests that are not in unit/
CASES = {
    "the refusal of a row is that row's": [
        f"{DIALECTS}::test_a_refused_row_fails_alone",
        f"{ERRORS}::test_an_error_about_one_row_is_that_rows",
        f"{ERRORS}::test_rows_that_are_refused_one_after_the_other_end_no_run",
        "integration/test_vendor.py::test_a_row_that_fails_fails_alone",
        "integration/test_vendor.py::test_each_package_has_its_own_errors",
    ],
    "a server that serves nothing": [
        f"{DIALECTS}::test_a_server_that_serves_nothing_stops_the_run",
        f"{ERRORS}::test_an_error_about_everything_stops_the_run_with_its_own_words",
        f"{ERRORS}::test_a_server_that_ends_in_a_run_is_no_answers_fault",
        "integration/test_vendor.py::test_a_key_that_is_refused_stops_the_run",
    ],
    "a whole reply in any dialect": [
        f"{DIALECTS}::test_a_reply_in_any_dialect_is_read_and_paid_once",
        f"{VENDORS}::test_a_whole_reply_is_read",
        f"{VENDORS}::test_a_reply_in_another_encoding_is_paid_once",
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
        f"{ERRORS}::test_a_server_that_replies_in_streams_only",
    ],
    "an answer that breaks its server": [
        "engines/test_server.py::test_an_answer_that_breaks_the_server_is_refused",
        "engines/test_server.py::test_nothing_is_gained_by_an_answer_that_breaks_the_server_and_nothing_lost_by_length",
    ],
    "a steady rate limit": [
        f"{DIALECTS}::test_a_steady_rate_limit_loses_no_row",
        f"{DIALECTS}::test_a_503_for_what_is_over_a_limit_loses_no_row",
        f"{ERRORS}::test_a_row_that_always_gets_a_503_ends",
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
        "data/test_cells.py::test_an_image_that_a_tool_returns_is_shown_as_one",
    ],
    "one bad row of a set": [
        "offline/test_bad_rows.py",
        "data/test_parts.py::test_a_bad_row_of_csv_is_one_row",
        "data/test_parts.py::test_a_file_of_another_form_says_what_to_do",
    ],
    "the part of a completion that is judged": ["data/test_completion.py"],
    "the forms that trainers document": ["data/test_conversations.py"],
    "a text where an image is": ["data/test_cells.py::test_a_data_uri_may_be_where_a_path_may"],
    "a list of references": ["data/test_cells.py::test_trainers_and_files_read_references_alike"],
    "bytes that are no image": ["data/test_cells.py::test_what_bytes_are_is_read_from_them"],
    "numbers of a container": ["system/test_video.py"],
    "half a character": ["offline/test_output.py::test_half_a_character_reaches_no_trainers_log_and_no_file_as_bytes"],
}

ROWS = {
    "a cache at a device or a foreign file": ["system/test_store_damage.py::test_what_is_not_ours_stays_as_it_is"],
    "one request takes its batch": [f"{DIALECTS}::test_a_refused_row_fails_alone"],
    "a molecule that takes a minute": [
        "system/test_molecules.py::test_one_that_takes_too_long_fails_soon_and_blocks_no_thread",
        "system/test_molecules.py::test_none_takes_long",
    ],
    "a deadline beside slow media": ["system/test_ranks.py::test_no_rank_waits_past_the_deadline_and_all_end_well"],
    "two runs on one output": ["offline/test_output.py"],
    "control tokens of a judge that is not known": ["prompts/test_quoting.py", "prompts/test_hardening.py"],
    "a rubric from data": ["prompts/test_hardening.py::test_the_rubric_of_a_row_adds_no_token_and_no_tag"],
    "a reply without log probabilities": ["formats/test_expected.py::test_an_engine_without_log_probabilities"],
    "numbers that are none": ["judge/test_rewards.py::test_what_is_no_finite_number_on_the_scale_is_a_failure"],
    "an answer without end": [f"{DIALECTS}::test_an_answer_without_end_is_not_read"],
    "pixels of a batch": ["media/test_frames.py"],
    "a command that only reads": ["cli/test_cache.py::test_a_file_that_is_no_cache_stays_as_it_is"],
    "a part that lost rows": ["offline/test_annotate.py::test_a_partial_file_that_lost_rows_is_not_filled_up"],
    "other weights under one name": ["engines/test_cache.py::test_a_reply_is_stored_only_under_who_gave_it"],
    "a failed row's advantage": [
        "judge/test_rewards.py::test_a_failed_row_moves_no_baseline",
        "trainers/test_gather.py::test_a_prompt_that_comes_twice_is_two_groups",
    ],
    "secrets of an address": [
        "media/test_source.py::test_no_message_shows_a_secret_of_an_address",
        "data/test_cells.py::test_logins_and_signatures_of_an_address_are_not_shown",
        "engines/test_server.py::test_secrets_stay_secret",
    ],
    "a login of an address": ["engines/test_server.py::test_a_login_in_the_address_is_sent"],
    "what the system refuses": ["cli/test_wrong_input.py::test_wrong_input_is_one_line"],
    "a row whose scale does not fit": ["formats/test_expected.py::test_a_row_whose_own_scale_does_not_fit_fails_alone"],
    "a reply that is only a thought": ["formats/test_budget.py"],
    "a panic of the tokenizer": ["contract/test_engines.py::test_a_panic_of_the_tokenizer_fails_one_request"],
    "one row of many candidates": ["offline/test_bad_rows.py::test_a_row_of_many_candidates_is_a_skipped_row"],
    "stale replies": ["engines/test_cache_keys.py"],
    "an image of a million blocks": ["media/test_image.py::test_many_blocks_are_refused_soon"],
    "names on a terminal": ["cli/test_cache.py::test_names_reach_the_terminal_without_escape_sequences"],
}
"""By what failed. A killed vLLM is in `bounds.py` only: it has to start it anew."""


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
    found = outcomes([node for nodes in (CASES | ROWS).values() for node in nodes])
    right, neighbours = [], 0
    for case, nodes in (CASES | ROWS).items():
        rows = [passed for node in nodes for passed in found[node]]
        right.append(bool(rows) and all(rows))
        neighbours += sum(rows) if case in CASES else 0
        print(f"{'right' if right[-1] else 'WRONG'}  {sum(rows):3} of {len(rows):3}  {case}")
    cases, attacked = right[: len(CASES)], right[len(CASES) :]
    families = found[f"{TEMPLATES}::test_the_familys_own_reply_is_read"]
    record("real.cases_right", sum(cases) / len(cases), unit="share", target=">= 1", note=f"{len(cases)} kinds of case")
    note = f"{len(attacked)} rows of an independent attack"
    record("hardening.rows_right", sum(attacked) / len(attacked), unit="share", target=">= 1", note=note)
    record("real.neighbours_right", neighbours, unit="rows of tables", target=">= 100")
    record("real.templates_judged", sum(families), unit="model families", target=">= 9")


if __name__ == "__main__":
    main()
