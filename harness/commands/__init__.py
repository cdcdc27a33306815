"""One short file per command of bench.py."""

COMMANDS = {
    "compare": "harness.commands.compare",
    "calls": "harness.commands.calls",
    "check": "harness.commands.check",
    "fuzz": "harness.commands.fuzz",
    "sanitize": "harness.commands.sanitize",
    "doctor": "harness.commands.doctor",
    "diff": "harness.commands.diff",
    "inspect": "harness.commands.inspect_kernels",
    "profile": "harness.commands.profile_entries",
    "project": "harness.commands.project",
    "tune": "harness.commands.tune",
    "list": "harness.commands.list_all",
    "show": "harness.commands.show_record",
    "judge": "harness.commands.judge",
    "brief": "harness.commands.brief",
    "export": "harness.commands.export",
}
"""Name on the command line, and the module with its SUMMARY, add_arguments(parser) and run(args) -> exit code."""
