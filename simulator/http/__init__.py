"""The HTTP server.

server      starts and stops the server, and maps errors to responses
routes      the routes of a vLLM server
admin       the routes that only the simulator has: faults, scripted answers, counters
sending     sends an answer, whole or as a stream, with the fault of its request
service     parses request bodies and plans their answers
responses   JSON bodies and stream events, field for field as vLLM writes them
"""
