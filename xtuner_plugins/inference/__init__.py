"""Answering with a model, and verifying that an export answers as the trained model does.

opening        a model directory or a training checkpoint becomes a session
session        prompts, tiles and generation, as in training: `reply` for a conversation, `answers` for many questions
questions      what is asked, and how long it is
batch_answers  many questions, in batches
chat           a conversation in the terminal                drawing       boxes of an answer
verify         an export against the trained model, in a clean process
"""
