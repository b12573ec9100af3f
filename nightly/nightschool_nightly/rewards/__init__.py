"""What a good answer is: rubrics, checks and the reward."""
