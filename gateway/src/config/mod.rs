#[derive(Debug)]
pub struct Config {}
#[derive(Debug, thiserror::Error)]
#[error("")]
pub struct ConfigErrors;
pub fn load(_p: &std::path::Path, _r: Option<&std::path::Path>) -> Result<Config, ConfigErrors> {
    Err(ConfigErrors)
}
