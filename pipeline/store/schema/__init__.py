"""Tables and migrations.

tables      all of them, for people and for the test that compares them with the migrations
job_tables, batch_tables
            the tables by what they are about
columns     what they share
migrate     create and upgrade them
migrations  a baseline and what was added to it
"""
