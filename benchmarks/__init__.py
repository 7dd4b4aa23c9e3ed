"""Questions of speed and size, one script each. Timing decides no test."""
