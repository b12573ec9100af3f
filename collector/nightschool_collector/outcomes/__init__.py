"""Outcomes over HTTP, from servers, pages and links in e-mails."""
