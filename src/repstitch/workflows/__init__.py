"""Complete jobs, one for each command: train, score, translate a file, run a study, run the demo."""
