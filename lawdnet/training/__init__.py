"""Training without ray: stages as rows of numbers, their steps, and the loop that runs them."""
