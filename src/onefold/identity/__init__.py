"""Who people are: identifiers, profiles, links."""
