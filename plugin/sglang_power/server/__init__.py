"""What one server is set up with and counts: its configuration file, its metrics. Knows no SGLang."""
