"""What a process shows of itself.

logging  structured log lines without the words of callers
"""
