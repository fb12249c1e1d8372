"""What models are measured by, and the ONNX file with its gate."""
