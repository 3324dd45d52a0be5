"""Speed and quality, measured: a trial, what is compared with it, and reports."""
