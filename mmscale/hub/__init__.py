"""Releases in `transformers`: AutoConfig, AutoModel and AutoProcessor open them, from a folder or
from the Hub.

``import mmscale`` registers the classes (`mmscale.hub.autoload`), before or after `transformers`
is imported. No code is read from a release, so ``trust_remote_code`` is never needed; weights go
through the same checks as `mmscale.load`.
"""
