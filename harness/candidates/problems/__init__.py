"""Any problem of KernelBench's form, judged by a budget that is estimated."""
