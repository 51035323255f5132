"""How the policy learns: gradient estimates, the multiplier between quality and cost, the update."""
