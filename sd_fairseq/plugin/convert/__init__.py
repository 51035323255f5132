"""A trained switchable checkpoint becomes a plain one."""
