"""MJ-Bench: does a reward prefer the image that people prefer, and does it treat people alike?"""
