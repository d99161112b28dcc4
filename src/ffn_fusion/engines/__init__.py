"""Inference engines that are run from here, each as it's installed: what they compute of a child."""
