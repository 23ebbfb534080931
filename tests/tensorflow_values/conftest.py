collect_ignore = ["make.py"]  # imports TensorFlow, which the tests do without
