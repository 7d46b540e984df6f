"""Building blocks of methods: one small file per idea, used by several methods. None of them knows a method."""
