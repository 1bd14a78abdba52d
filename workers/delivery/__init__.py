"""All that Celery sees."""
