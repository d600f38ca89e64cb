"""What a step costs, side by side with other ways of writing it."""
