"""Tables and migrations.

tables      the tables, for people and for the test that compares them with the migrations
migrate     create and upgrade them
migrations  one baseline; migrations are added after the first tagged release
"""
