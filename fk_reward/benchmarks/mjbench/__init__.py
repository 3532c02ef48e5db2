"""MJ-Bench: does a reward prefer the picture that people prefer, and does it treat people alike?"""
