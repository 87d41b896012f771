"""JSON of what looks wrong with a session."""

from pydantic import BaseModel, ConfigDict, Field


class Anomaly(BaseModel):
    """One thing that looks wrong."""

    model_config = ConfigDict(from_attributes=True)

    rule: str = Field(description="Its name, for programs; docs/dashboard.md has them all.")
    since_step: int = Field(description="From where on.")
    text: str = Field(description="What was seen.")
    advice: str = Field(description="What to do.")


class AnomalyList(BaseModel):
    anomalies: list[Anomaly] = Field(description="The gravest first.")
