"""From a run's results file to tables, plots and a report. Reads files only, trains nothing."""
