"""What is done to true and predicted texts before they are compared: a module each, named as the
kind is.

A kind is a function from a text to a text. It sees one text at a time, and is called on both.
"""
