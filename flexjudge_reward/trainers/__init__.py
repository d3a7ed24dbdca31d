"""A judge as the reward of a trainer: one thin file per trainer."""
