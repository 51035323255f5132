"""What a path costs, in closed form."""
