"""What a command starts: many runs, or the work before one."""
