"""The MONAI Label app: the one place that knows MONAI Label."""
