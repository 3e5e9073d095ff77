"""The planner: what a run will need, on which card, before anything is downloaded."""
