pub fn run(_arguments: &[String]) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
