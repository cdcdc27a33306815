"""The lab: cases, their inputs and truth, comparison, timing, reports."""
