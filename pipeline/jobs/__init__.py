"""A single job: its way in, and the way of its outcome back.

preparation  check a job, choose its model, sanitise its images
admission    back-pressure: refuse what would make a queue too long
submit       store a job that a caller waits for, and publish its doorbell
wait         wait for outcomes
follow       read a streamed answer
cancel       settle a job as cancelled
notify       notify callers of settled jobs
intake       jobs that arrive as messages
replies      replies to the callers behind the intake queue
"""
