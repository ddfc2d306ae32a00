"""The whole jobs behind the commands: train, score, translate, study and the demo."""
