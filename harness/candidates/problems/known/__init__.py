"""Problems of KernelBench's form that calibrate the estimated budget: calibration.py."""
