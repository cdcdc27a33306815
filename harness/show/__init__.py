"""Records as tables, plots and pages. Nothing here measures."""
