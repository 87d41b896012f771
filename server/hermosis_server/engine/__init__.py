"""Sessions and steps: from chunks of gradient to a step of many sessions in one launch, and back."""
