"""Where pairs come from: answers that a model writes, votes and ratings of people, and the better part of a set."""
