"""Records: the study directory, progress, TensorBoard, Prometheus."""
