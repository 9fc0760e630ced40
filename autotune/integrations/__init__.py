"""The tuner inside other people's trainers."""
