"""What varies, where it runs, what is recorded: sweep files, Ray Tune and the MLflow writer."""
