"""Tables and migrations.

tables      the tables, for people and for the test that compares them with the migrations
migrate     create and upgrade them
migrations  a baseline and what was added to it
"""
