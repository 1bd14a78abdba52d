"""The text of an answer, its tokens and its logprobs.

planner          decides what an answer will be before the engine writes it
scripted         answers that a file or the admin route defines
canned_replies   free text, when no constraint applies
classifier       probabilities of options, from the words of a text
lexicon          word lists, Chinese and English
json_values      JSON values for a schema
patterns         texts for a regular expression
logprobs         logprobs of tokens, in both of vLLM's formats
"""
