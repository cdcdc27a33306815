"""Tests that take long, by path and name: seconds each, or all dtypes and layouts. `-m long` runs them: CI does, and
who changes what they test.

The rest is the run for every day, 4 minutes on two cores. Each subject keeps some tests in it.
"""

CONVGAP = {
    "convgap/test_any_size.py": ["test_representatives_have_every_kind"],
    "convgap/test_backends.py": ["test_dtype", "test_layout"],
    "convgap/test_backward.py": ["test_derivatives_of_a_case", "test_second_derivative"],
    "convgap/test_faults.py": ["test_out_of_memory_blames_no_backend", "test_the_next_backend_serves"],
    "convgap/test_kinds_left.py": [
        "test_a_call_that_cannot_be_launched_costs_no_other_call",
        "test_status_is_an_answer",
        "test_the_variable",
    ],
    "convgap/test_sizes.py": ["test_a_model_takes_whatever_sizes_come"],
    "convgap/torch_op/test_compile.py": ["test_export_loads_in_a_process_of_its_own"],
    "convgap/torch_op/test_distributed.py": ["test_ddp_matches_one_process", "test_dtensor"],
}

BELOW = {
    "cupy_impl/test_interpret_cache.py": [
        "test_a_damaged_library_is_made_anew",
        "test_processes_share_the_cache",
    ],
    "runtime/test_plan.py": ["test_the_same_bits_under_one_plan_which_explain_names"],
    "runtime/test_private.py": ["test_all_are_there_and_no_thread_is_started", "test_without_one"],
    "triton_impl/test_fixed.py": [
        "test_every_kernel_has_a_shorter_form_for_its_sizes_which_adds_in_the_same_order",
    ],
    "triton_impl/test_machine_code.py": ["test_stages_make_what_triton_makes"],
}

CANDIDATES = {
    "harness/candidates/problems/test_problem.py": [
        "test_a_kernel_that_takes_its_weights_once_is_accepted_where_that_is_allowed",
        "test_a_problem_whose_every_output_is_random_is_not_judged",
        "test_a_problems_own_model_is_accepted",
        "test_wrong_kernels_and_dishonest_ones",
    ],
    "harness/candidates/test_exploits.py": ["test_refused"],
    "harness/candidates/test_export.py": [
        "test_accepted_by_the_judge_with_strict_rules",
        "test_compiles_to_as_much_machine_code_as_the_package",
        "test_planted_violation_is_rejected",
        "test_wrong_answers_are_rejected",
    ],
    "harness/candidates/test_isolation.py": ["test_no_candidate_of_a_judge_with_a_gpu_runs_on_the_cpu"],
    "harness/candidates/test_judge.py": [
        "test_examples_are_accepted",
        "test_failure_is_the_candidates_verdict",
    ],
    "harness/candidates/test_kernelbench.py": ["test_model_new_against_model"],
    "harness/candidates/test_queue.py": [
        "test_every_kind_gets_its_verdict_and_a_queue_goes_on_where_it_stopped",
        "test_processes_that_die_lose_nothing",
    ],
}

LAB = {
    "harness/commands/test_sanitize.py": ["test_driver_reaches_every_kernel"],
    "harness/machine/test_compile_sm89.py": ["test_cuda", "test_triton"],
    "harness/machine/test_emulated.py": ["test_what_triton_compiles_for_sm_89_is_right"],
    "harness/machine/test_inspect.py": [
        "test_both_sets_pass_the_audit_on_the_4090_and_the_baseline_spills",
        "test_cases_are_chosen_by_name",
    ],
    "harness/machine/test_sm89_executed.py": ["test_triton_ptx_is_for_sm_89"],
    "harness/operators/test_judged.py": ["test_a_file_is_judged_by_the_operators_own_budget"],
    "harness/operators/test_second_operator.py": [
        "test_a_wrong_softmax_is_found",
        "test_calls",
        "test_it_is_timed",
    ],
    "harness/runs/test_run.py": ["test_entries_behind_a_crash_are_right"],
    "harness/show/test_show.py": ["test_pictures_fit_a_page_and_the_dark_ones_differ"],
    "harness/test_cli.py": ["test_the_front_door_interprets_triton_where_there_is_no_gpu"],
    "harness/test_missing_parts.py": [
        "test_a_closed_pipe_is_no_wrong_answer",
        "test_no_command_ends_in_a_traceback_because_a_part_is_missing",
    ],
    "test_examples.py": ["test_fallback", "test_fuse_model", "test_train"],
    "test_package.py": [
        "test_the_command_line_works_beside_files_with_its_folders_names",
        "test_works_beside_files_with_its_folders_names",
    ],
}

LONG = {
    f"tests/{file}::{test}"
    for room in (CONVGAP, BELOW, CANDIDATES, LAB)
    for file, tests in room.items()
    for test in tests
}
