"""What several tests need: no test module imports another one."""
